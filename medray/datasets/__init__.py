"""What an example is, where it comes from, and who is in which split."""
