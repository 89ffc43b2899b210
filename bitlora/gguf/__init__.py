"""What llama.cpp reads: adapters and whole models in GGUF, written and read again."""
