"""Sources: where base models come from."""
