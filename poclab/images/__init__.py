"""What is done to versions of images: build, import, look at, compare, remove."""
