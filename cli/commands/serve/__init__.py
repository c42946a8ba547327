"""Commands on the model server and on the local engines' status."""
