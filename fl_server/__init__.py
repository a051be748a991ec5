"""The server: the Flower ServerApp, its rounds and its checkpoints."""
