"""What measures speed and quality: each prints a table and writes JSON."""
