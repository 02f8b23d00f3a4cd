"""Container images, by podman, and what is in them."""
