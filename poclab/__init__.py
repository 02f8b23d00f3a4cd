"""poclab: virtual machines for proofs of concept, on versioned images."""

__version__ = "0.1.0"
