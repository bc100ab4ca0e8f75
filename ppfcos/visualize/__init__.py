"""What people look at: pictures with the boxes that were found."""
