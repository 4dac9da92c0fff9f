"""What `mlflywheel.storage` costs beside boto3 and s3fs."""
