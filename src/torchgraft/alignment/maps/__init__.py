"""What an alignment says, as index maps: applied, inverted, composed, told to people."""
