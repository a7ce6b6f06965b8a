"""The reports: pages, figures and tables as pure functions of stored records; needs no torch."""
