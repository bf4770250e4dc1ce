"""Images by name: folders, parquet, webdataset shards, hub data sets, the drawn world."""
