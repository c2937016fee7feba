"""What a network costs: measured milliseconds, and the channel block that makes its cost a staircase."""
