"""The report page: what was curated, trained and measured, gathered into one file that opens anywhere."""
