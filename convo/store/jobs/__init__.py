"""The job table: leasing, rescue, endings, the parts that are found, and what the API shows of a job."""
