"""Tidy tables to verdicts and figures: what each claim says, and what was measured."""
