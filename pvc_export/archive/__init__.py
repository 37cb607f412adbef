"""`pvc-export batch`: from a folder of videos to a table of answers.

job.py defines the questions and finds the videos, answering.py answers about one video, workers.py does so in several
processes and on_ray.py on a Ray cluster, table.py stores the rows. Only the process that was started writes rows.
"""
