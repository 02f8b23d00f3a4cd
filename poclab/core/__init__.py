"""What everything else is made with: errors, events, processes, locks, files."""
