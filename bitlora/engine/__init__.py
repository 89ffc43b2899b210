"""Trials in their slots: attach, step, evaluate, detach."""
