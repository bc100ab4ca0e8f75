"""What the tests share: small models and data, other implementations, a browser and a terminal."""
