"""Networks that the project builds or trains itself."""
