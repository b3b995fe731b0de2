"""The study: does a network learn better with learned spacings?"""
