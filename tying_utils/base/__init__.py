"""The ground: where things lie, what they are called, checks of arguments, whole files and what is read of a hub."""
