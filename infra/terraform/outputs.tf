output "bucket" {
  value       = aws_s3_bucket.this.bucket
  description = "Where runs/ and datasets/ lie."
}

output "role_arns" {
  value       = { for name, role in aws_iam_role.this : name => role.arn }
  description = "For service accounts of clusters that do not use Pod Identity."
}
