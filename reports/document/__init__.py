"""A document as plain data, and numbers and names as it prints them."""
