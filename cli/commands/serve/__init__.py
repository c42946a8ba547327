"""The commands of the group Serve: the model server, feedback and services."""
