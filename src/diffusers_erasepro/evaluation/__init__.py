"""What an erasure does: pictures, judged and counted; attacks."""
