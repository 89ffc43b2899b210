"""The sections of what trials were measured by beside their loss."""
