"""What a machine with one GPU shows: that it draws what the CPU draws, and how fast."""
