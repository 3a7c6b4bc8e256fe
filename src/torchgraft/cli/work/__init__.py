"""What the commands do; imported when one of them runs, as torch is needed from here on."""
