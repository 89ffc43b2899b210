"""Trials that go on as copies of others: who becomes whose copy, with what values, and from where."""
