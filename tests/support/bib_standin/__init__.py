"""A stand-in for bootc-image-builder; see README.md here."""
