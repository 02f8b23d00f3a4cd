"""From what is asked for and what is there to what is to be done. Pure."""
