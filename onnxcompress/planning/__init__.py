"""Filters to remove and ranks to factor at, chosen together under one budget."""
