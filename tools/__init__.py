"""What people run: the command line, the lab, the inspector, a test client."""
