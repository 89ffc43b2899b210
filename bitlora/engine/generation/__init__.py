"""Text out of many adapters at once over one base: token by token, the likeliest or drawn."""
