"""Where two models part: what each run saw, and what it did differently there."""
