"""A plan as one page for a browser: pictures and tables, without anything from elsewhere.

Pure functions from reports to text. Reads and writes nothing, and knows no format but by what a report says.
"""
