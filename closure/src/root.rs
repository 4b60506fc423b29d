//! A file system to look in: that of the build machine or a folder that holds another one.
