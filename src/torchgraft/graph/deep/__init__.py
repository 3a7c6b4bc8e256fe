"""The deep record: a run down to primitive operations, with the axes of every value."""
