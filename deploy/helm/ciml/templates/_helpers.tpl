{{/* Names: "ciml" for the release ciml, else RELEASE-ciml; then -PART. */}}
{{- define "ciml.name" -}}
{{- if contains "ciml" .Release.Name }}{{ .Release.Name | trunc 40 | trimSuffix "-" }}{{ else }}{{ printf "%s-ciml" (.Release.Name | trunc 35 | trimSuffix "-") }}{{ end -}}
{{- end -}}

{{- define "ciml.labels" -}}
app.kubernetes.io/name: ciml
app.kubernetes.io/instance: {{ .Release.Name }}
app.kubernetes.io/version: {{ .Chart.AppVersion | quote }}
app.kubernetes.io/managed-by: {{ .Release.Service }}
helm.sh/chart: {{ printf "%s-%s" .Chart.Name .Chart.Version }}
{{- end -}}

{{/* Labels that select the pods of a part: (dict "root" $ "part" "ingest"). */}}
{{- define "ciml.selector" -}}
app.kubernetes.io/name: ciml
app.kubernetes.io/instance: {{ .root.Release.Name }}
app.kubernetes.io/component: {{ .part }}
{{- end -}}

{{- define "ciml.image" -}}
{{ printf "%s/%s:%s" .root.Values.image.registry .image (.root.Values.image.tag | default .root.Chart.AppVersion) }}
{{- end -}}

{{/* What every pod of ciml has. (dict "root" $) */}}
{{- define "ciml.pod" -}}
{{- $v := .root.Values -}}
serviceAccountName: {{ include "ciml.name" .root }}
automountServiceAccountToken: false
securityContext:
  runAsNonRoot: true
  runAsUser: 10001
  runAsGroup: 10001
  fsGroup: 10001
  seccompProfile: {type: RuntimeDefault}
{{- with $v.image.pullSecrets }}
imagePullSecrets:
  {{- range . }}
  - name: {{ . }}
  {{- end }}
{{- end }}
{{- with $v.nodeSelector }}
nodeSelector: {{ toYaml . | nindent 2 }}
{{- end }}
{{- with $v.tolerations }}
tolerations: {{ toYaml . | nindent 2 }}
{{- end }}
{{- with $v.affinity }}
affinity: {{ toYaml . | nindent 2 }}
{{- end }}
{{- end -}}

{{- define "ciml.security" -}}
securityContext:
  allowPrivilegeEscalation: false
  readOnlyRootFilesystem: true
  capabilities: {drop: [ALL]}
{{- end -}}

{{/* The environment of every container of ciml: data root, broker, credentials. */}}
{{- define "ciml.environment" -}}
{{- $v := .root.Values -}}
envFrom:
  - configMapRef: {name: {{ include "ciml.name" .root }}}
  {{- with $v.data.secret }}
  - secretRef: {name: {{ . }}}
  {{- end }}
env:
  - {name: CIML_HOME, value: /var/lib/ciml}
{{- end -}}

{{/* Volumes that every container of ciml mounts: the supervisor's folder, scratch, policies, the broker's secret. */}}
{{- define "ciml.mounts" -}}
volumeMounts:
  - {name: home, mountPath: /var/lib/ciml}
  - {name: scratch, mountPath: /tmp}
  - {name: config, mountPath: /etc/ciml, readOnly: true}
  {{- if .root.Values.kafka.secret }}
  - {name: kafka, mountPath: /etc/ciml-kafka, readOnly: true}
  {{- end }}
{{- end -}}

{{- define "ciml.volumes" -}}
{{- if .claim }}
- name: home
  persistentVolumeClaim: {claimName: {{ .claim }}}
{{- else }}
- name: home
  emptyDir: {sizeLimit: 256Mi}
{{- end }}
- name: scratch
  emptyDir: {sizeLimit: 2Gi}
- name: config
  configMap: {name: {{ include "ciml.name" .root }}-config}
{{- with .root.Values.kafka.secret }}
- name: kafka
  secret: {secretName: {{ . }}}
{{- end }}
{{- end -}}

{{/* The environment of all containers of ciml. */}}
{{- define "ciml.settings" -}}
CIML_DATA_PATH: {{ .Values.data.path | quote }}
CIML_KAFKA: {{ .Values.kafka.broker | quote }}
{{- if .Values.kafka.secret }}
CIML_KAFKA_CONFIG: /etc/ciml-kafka/kafka.properties
{{- end }}
{{- with .Values.data.endpoint }}
AWS_ENDPOINT_URL_S3: {{ . | quote }}
{{- end }}
CIML_METRICS_ADDRESS: 0.0.0.0
{{- end -}}

{{/* The files below /etc/ciml, by name. */}}
{{- define "ciml.files" -}}
fetch.toml: {{ .Values.policies.fetch | quote }}
{{- with .Values.policies.trust }}
trust.toml: {{ . | quote }}
{{- end }}
receivers.toml: {{ .Values.receivers.config | quote }}
feedback.toml: {{ .Values.feedback.config | quote }}
{{- range .Values.trainers }}
{{- if .experiment }}
experiment-{{ .name }}.toml: {{ .experiment | quote }}
{{- end }}
{{- end }}
{{- range .Values.periodic.datasets }}
dataset-{{ .name }}.toml: {{ .definition | quote }}
{{- end }}
{{- if eq .Values.models.server "tensorflow-serving" }}
monitoring.config: {{ printf "prometheus_config { enable: true, path: %q }" "/monitoring/prometheus/metrics" | quote }}
{{- end }}
{{- end -}}

{{/* Digest of the environment and of the files that arguments name: pods are replaced when it changes. (dict "root" $ "args" (list …)) */}}
{{- define "ciml.digest" -}}
{{- $files := include "ciml.files" .root | fromYaml -}}
{{- $used := dict "environment" (include "ciml.settings" .root) -}}
{{- range .args -}}
{{- if contains "/etc/ciml/" . -}}
{{- $name := regexReplaceAll "^.*/etc/ciml/" . "" -}}
{{- $_ := set $used $name (get $files $name) -}}
{{- end -}}
{{- end -}}
{{- $used | toJson | sha256sum -}}
{{- end -}}

{{/*
A Deployment with one container of ciml that has metrics.
(dict "root" $ "part" "ingest" "image" "services" "command" (list …) "args" (list …) "port" 9464 "resources" … "replicas" 1 "claim" "" "ports" (list …)
 "secret" "NAME" "secretPath" "PATH" "probe" "PATH" "probePort" "NAME" "ready" "PATH" "delay" SECONDS)
A secret's keys are files below its path, readable by the container's user and group.
A part without "ready" takes no requests: an upgrade ends its pod before it starts the next one.
*/}}
{{- define "ciml.deployment" -}}
{{- $name := printf "%s-%s" (include "ciml.name" .root) .part -}}
apiVersion: apps/v1
kind: Deployment
metadata:
  name: {{ $name }}
  labels: {{ include "ciml.labels" .root | nindent 4 }}
spec:
  replicas: {{ .replicas | default 1 }}
  {{- if not .ready }}
  strategy: {type: Recreate}
  {{- end }}
  selector:
    matchLabels: {{ include "ciml.selector" . | nindent 6 }}
  template:
    metadata:
      labels: {{ include "ciml.selector" . | nindent 8 }}
        ciml/metrics: "true"
      annotations:
        checksum/config: {{ include "ciml.digest" . | quote }}
    spec: {{ include "ciml.pod" . | nindent 6 }}
      terminationGracePeriodSeconds: 30
      containers:
        - name: {{ .container | default .part }}
          image: {{ include "ciml.image" (dict "root" .root "image" (.image | default "services")) }}
          imagePullPolicy: {{ .root.Values.image.pullPolicy }}
          command: {{ toJson .command }}
          args: {{ toYaml (concat .args (list (printf "--metrics-port=%d" (int .port)))) | nindent 12 }}
          {{- include "ciml.environment" . | nindent 10 }}
          ports:
            - {name: metrics, containerPort: {{ .port }}}
            {{- range .ports }}
            - {name: {{ .name }}, containerPort: {{ .port }}}
            {{- end }}
          livenessProbe:
            httpGet: {path: {{ .probe | default "/metrics" }}, port: {{ .probePort | default "metrics" }}}
            initialDelaySeconds: {{ .delay | default 120 }}
            periodSeconds: 30
            timeoutSeconds: 10
            failureThreshold: 6
          {{- if .ready }}
          readinessProbe:
            httpGet: {path: {{ .ready }}, port: {{ .probePort }}}
          {{- end }}
          resources: {{ toYaml .resources | nindent 12 }}
          {{- include "ciml.security" . | nindent 10 }}
          {{- include "ciml.mounts" . | nindent 10 }}
            {{- if .secret }}
            - {name: secrets, mountPath: {{ .secretPath }}, readOnly: true}
            {{- end }}
      volumes: {{ include "ciml.volumes" . | nindent 8 }}
        {{- with .secret }}
        - name: secrets
          secret: {secretName: {{ . }}, defaultMode: 0440}
        {{- end }}
{{- end -}}

{{/* A CronJob of ciml's steps, the last one the job's container. (dict "root" $ "part" "compaction" "schedule" "…" "steps" (list (list …))) */}}
{{- define "ciml.cronjob" -}}
{{- $steps := .steps -}}
{{- $root := .root -}}
{{- $self := . -}}
apiVersion: batch/v1
kind: CronJob
metadata:
  name: {{ printf "%s-%s" (include "ciml.name" .root) .part }}
  labels: {{ include "ciml.labels" .root | nindent 4 }}
spec:
  schedule: {{ .schedule | quote }}
  timeZone: {{ .root.Values.periodic.timeZone }}
  concurrencyPolicy: Forbid
  startingDeadlineSeconds: 3600
  successfulJobsHistoryLimit: 1
  failedJobsHistoryLimit: 3
  jobTemplate:
    spec:
      backoffLimit: 2
      template:
        metadata:
          labels: {{ include "ciml.selector" . | nindent 12 }}
        spec: {{ include "ciml.pod" . | nindent 10 }}
          restartPolicy: Never
          {{- if gt (len $steps) 1 }}
          initContainers:
            {{- range $number, $step := initial $steps }}
            - name: step-{{ add1 $number }}
              {{- include "ciml.step" (dict "root" $root "step" $step) | nindent 14 }}
            {{- end }}
          {{- end }}
          containers:
            - name: step-{{ len $steps }}
              {{- include "ciml.step" (dict "root" $root "step" (last $steps)) | nindent 14 }}
          volumes: {{ include "ciml.volumes" (dict "root" $root "claim" "") | nindent 12 }}
{{- end -}}

{{- define "ciml.step" -}}
image: {{ include "ciml.image" (dict "root" .root "image" "services") }}
imagePullPolicy: {{ .root.Values.image.pullPolicy }}
command: [ciml]
args: {{ toYaml .step | nindent 2 }}
{{- include "ciml.environment" . | nindent 0 }}
resources: {{ toYaml .root.Values.periodic.resources | nindent 2 }}
{{- include "ciml.security" . | nindent 0 }}
{{- include "ciml.mounts" . | nindent 0 }}
{{- end -}}
