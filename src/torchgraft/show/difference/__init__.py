"""What differs between two models: read, paired, compared, and written for people."""
