"""What concerns this process: its terminal, its memory, and code of a user's files."""
