"""HTTP: dialects, auth, errors, pictures, health."""
