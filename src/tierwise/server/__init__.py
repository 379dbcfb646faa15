"""HTTP: bytes to requests and back. Who may come in, what they hear, and how the process starts and stops."""
