"""Stand-ins for the disk builders; see README.md here."""
