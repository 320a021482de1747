"""Distilling MIU-Diff into a student that translates in one step."""
