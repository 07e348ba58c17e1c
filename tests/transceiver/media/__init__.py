"""Audio, tested with scripted packets and a clock of its own."""
