"""The commands of the group Serve: the model server, services and their status."""
