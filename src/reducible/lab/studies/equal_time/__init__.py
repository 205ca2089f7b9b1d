"""Equal time: what each rule reaches in the seconds that uniform takes."""
