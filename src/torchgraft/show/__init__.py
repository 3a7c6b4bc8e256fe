"""What people see: reports on models and on what was done to them."""
