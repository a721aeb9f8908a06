"""What people look at: statistics, pictures, reports, and what compiled programs say."""
